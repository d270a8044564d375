"""Settings of attention kinds as users write them: read as they are meant, or refused in one line."""

import re

import pytest

from ecoformer import InputError
from ecoformer.kinds import make_spec
from ecoformer.nn.specs import split_setting

AT_LEAST_1 = "must be a whole number of at least 1"
REFUSED = {
    "nonsense": "attention=nonsense does not exist; choose one of stock, ",
    "stock:num_bits=8": "attention=stock takes no options, got num_bits",
    "ecoformer:num_bits": "'num_bits' is no key=value",
    "ecoformer:num_bits=[1": "setting 'ecoformer:num_bits=[1': '[1' is no value: ",
    "ecoformer:num_bits=!!x 1": "setting 'ecoformer:num_bits=!!x 1': '!!x 1' is no value: ",
    "ecoformer:num_bits=*a": "setting 'ecoformer:num_bits=*a': '*a' is no value: ",
    "ecoformer:num_bit=8": "attention.num_bit is not an option of attention=ecoformer; did you mean",
    "ecoformer:num_bits=0": f"attention.num_bits=0 {AT_LEAST_1}",
    "ecoformer:num_bits=5000": "num_bits=5000 must be at most 4096",
    "ecoformer:num_bits=few": "attention.num_bits='few' must ",
    "ecoformer:fit_lr=0": "attention.fit_lr=0 must be a finite number above 0",
    "ecoformer:fit_lr=few": "attention.fit_lr='few' must ",
    "ecoformer:fit_momentum=few": "attention.fit_momentum='few' must ",
    "ecoformer:clamp=few": "attention.clamp='few' must ",
    "ecoformer:numerator=token": "must be own_token or kernel",
    "ecoformer_tuned:num_bits=0": f"attention.num_bits=0 {AT_LEAST_1}",
    "ecoformer_tuned:num_anchors=-1": "attention.num_anchors=-1 must be a whole number of at least 0",
    "ecoformer_tuned:num_anchors=5000": "num_anchors=5000 must be at most 4096",
    "ecoformer_tuned:fit_steps=true": "attention.fit_steps=True must be a whole number of at least 0",
    "ecoformer_tuned:fit_lr=0": "attention.fit_lr=0 must be a finite number above 0",
    "ecoformer_tuned:qk=one": "attention.qk='one' must be separate or shared",
    "ecoformer_tuned:code=ternary": "attention.code='ternary' must be binary or sign",
    "ecoformer_tuned:bit_weights=1": "attention.bit_weights=1 must be true or false",
    "ecoformer_tuned:floor=0": "attention.floor=0 must be a finite number above 0, or null to fit it",
    "random_hash:num_bits=0": f"attention.num_bits=0 {AT_LEAST_1}",
    "random_hash:fit_steps=3": "attention.fit_steps is not an option of attention=random_hash",
    "distilled_hash:num_bits=0": f"attention.num_bits=0 {AT_LEAST_1}",
    "distilled_hash:fit_steps=true": "attention.fit_steps=True must be a whole number of at least 0",
    "distilled_hash:fit_lr=0": "attention.fit_lr=0 must be a finite number above 0",
    "distilled_hash:fit_values=maybe": "attention.fit_values='maybe' must be auto, true or false",
    "distilled_hash:relaxation=tanh": "attention.relaxation='tanh' must be sigmoid or straight_through",
    "distilled_hash:joint_steps=-1": "attention.joint_steps=-1 must ",
    "distilled_hash:joint_batch_size=0": f"attention.joint_batch_size=0 {AT_LEAST_1}",
    "distilled_hash:joint_lr=0.0": "attention.joint_lr=0.0 must be a finite number above 0",
    "distilled:num_features=5000": "num_features=5000 must be at most 4096",
    "distilled:levels=1": "levels=1 must be a whole number of at least 2",
    "distilled:levels=64": "levels=64 must be at most 48",
    "distilled:codes=bits,levels=8": "levels=8 is of codes=shift, bits have two",
    "distilled:codes=tables": "codes='tables' must be shift or bits",
    "distilled:projection=binary": "projection='binary' must be real, ternary or shift",
    "distilled:projection=shift,projection=real": "names projection twice",
    "distilled:values=ternary": "values='ternary' must be real or shift",
    "hedgehog:fit_values=true": "attention.fit_values=true: hedgehog keeps the values",
    "hedgehog:fit_values=auto": "attention.fit_values=auto: hedgehog keeps the values",
    "binary_qk:form=other": "attention.form='other' must be signs, scaled, grid or line",
    "binary_qk:num_tokens=17": "attention.num_tokens=17 is of form=grid and line: leave it out",
    "binary_qk:form=grid,num_tokens=0": f"attention.num_tokens=0 {AT_LEAST_1}",
    "linformer:proj_dim=0": f"attention.proj_dim=0 {AT_LEAST_1}",
    "linformer:num_tokens=1.5": "attention.num_tokens=1.5 must be a whole number",
    "linformer:share_kv=1": "attention.share_kv=1 must be true or false",
    "performer:num_features=0": f"attention.num_features=0 {AT_LEAST_1}, or null",
    "performer:num_bits=4": "attention.num_bits is not an option of attention=performer",
    "linear_sra:pool_size=0": f"attention.pool_size=0 {AT_LEAST_1}",
}


@pytest.mark.parametrize(("setting", "message"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_cannot_be_meant_is_one_line(setting, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        make_spec(*split_setting(setting))
    assert "\n" not in str(error.value)


def test_a_small_rate_is_read_as_a_number():
    assert split_setting("distilled:fit_lr=1e-05,levels=16") == ("distilled", {"fit_lr": 1e-5, "levels": 16})
