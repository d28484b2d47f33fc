"""Wrong values of a repair are refused before any training, each with a sentence that names it."""

from collections.abc import Callable
from typing import Any

import pytest

from finepruning.pipeline import Refused

RunHere = Callable[..., dict[str, Any]]
REFUSED = {
    "defense.ladder=[{tuner: magic}]": r"'magic' of a rung is unknown\. Choose unlearn, finetune, .* in def",
    "defense.folds=0": r"folds=0 cannot be made of 136 images\. Set defense\.folds to 1 or more",
    "defense.ladder=[]": r"defense\.ladder is empty\. Give it a rung",
    "defense.ladder=[0.05]": r"The rung 0\.05 has no options by name\. Write it like \{weight: 0\.05\}",
    "defense.ladder=[{wieght: 0.1}]": r"option wieght\. It has .*, weight, .* \(In a rung .* when",
    "defense.ladder=[{weight: 0.1, prune: 4}]": r"prune=4 of a rung is no fraction in \[0, 1\]",
    "defense.ladder=[{tuner: finetune, layers: [head]}]": r"FinePrunedClassifier has no option layers\.",
    "defense.ladder=[{weight: heavy}]": r"weight=heavy does not fit: it should be a valid number",
    "defense.tuning.weight=abc": r"weight=abc does not fit: .* Change defense\.tuning\.weight",
    "defense.tuning.radii=1": r"radii=1 does not fit: .* Change defense\.tuning\.radii",
    "defense.tuning.radii=[1,b]": r"radii=\[1, 'b'\] does not fit: .* Change defense\.tuning\.radii",
    "defense.tuning.perturbations=2.5": r"perturbations=2\.5 does not fit: it should be a valid int",
    "defense.tuning.batch_size=abc": r"batch_size=abc are no way to tune",
    "defense.ladder=[{tuner: clp, weight: 0.1}]": r"'clp' has no option weight in a rung\. It has prune, u",
    "defense.ladder=[{tuner: anp, noise: 0}]": r"'noise': 0\} of defense\.ladder cannot be built: noise=0",
    "defense.ladder=[{tuner: nad, teacher_epochs: 20}]": r"teacher_epochs=20 leave none of max_epochs=20",
    "defense.tuning.max_epochs=-1": r"max_epochs=-1 and batch_size=128 are no way to tune",
    "defense.max_drop=2": r"max_drop=2 is outside \[0, 1\]",
    "~defense.inspection": r"walked by what an inspection finds, .* no defense\.inspection\. Start from",
    "defense.audit.max_success=0": r"max_success=0 is outside \(0, 1\]",
    "defense.tuning._target_=os.system": r"_target_ 'os\.system' is not allowed; it must begin with finepr",
    "defense.tuning._target_=finepruning.modules.Magic": r"modules\.Magic is no module that tunes\. Set def",
    "defense.tuning._target_=finepruning.modules.CleanClassifier": r"CleanClassifier is no module that tunes",
    "defense.tuning.weight=-1": r"weight=-1 is below 0\. Set defense\.tuning\.weight",
    "defense.tuning.temperature=0": r"temperature=0 must be above 0",
    "defense.tuning.radii=[3,1]": r"radii=\[3, 1\] are not a smallest and a largest L2 norm",
    "defense.tuning.perturbations=0": r"perturbations=0 is an empty pool",
    "defense.tuning.perturbations=5": r"5 perturbations cannot have 7 goals\. Raise defense\.tuning\.pert",
    "defense.inspection.search.group=1": r"images=\d do not fit into passes of group=1\. Lower",
    "defense.inspection.search.steps=0": r"steps=0 leaves nothing to search with",
    "defense.inspection.search.steps=abc": r"steps=abc leaves nothing to search with",
    "defense.inspection.search.success=1": r"success=1 is outside \(0, 1\)",
    "defense.inspection.search.rates.additive=inf": r"rates=.* must be above 0, and finite",
    "defense.inspection.search.rates.mask=fast": r"rates=.* must be above 0, and finite",
    "+defense.inspection.search.rates.foo=1": r"rates=.* must name additive and mask",
    "defense.inspection.outlier=x": r"outlier=x does not fit: .*\. Change defense\.inspection\.outlier",
    "defense.inspection.suspicious=1.5": r"suspicious=1\.5 does not fit: .* Change defense\.inspection",
    "defense.max_drop=1%": r"max_drop=1% is outside \[0, 1\]",
    "defense.folds=1.5": r"folds=1\.5 cannot be made of 136 images",
    "defense.tuning.min_steps=-1": r"min_steps=-1 is no number of steps\. Set defense\.tuning\.min_steps",
    "defense.tuning.learning_rate=-1": r"must be above 0\. Change training\.learning_rate, of a repair",
}


@pytest.mark.parametrize(("override", "sentence"), REFUSED.items())
def test_a_bad_value_is_refused_before_training(
    override: str, sentence: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=sentence):
        quick_run("defense=auto", override)
