"""The keys of a row of `ecoformer energy --format json`, in order: a contract."""

ROW_KEYS = (
    "model",
    "attention",
    "img_size",
    "num_bits",
    "num_anchors",
    "convention",
    "profile",
    "params",
    "muls",
    "adds",
    "energy_pj",
    "area_um2",
    "attention_muls",
    "attention_adds",
    "attention_energy_pj",
    "uncounted",
)
