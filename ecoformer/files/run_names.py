"""What the files of a run are called."""

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
TOP = "top"  # folder with the weights of the best epochs
METRICS, METRICS_TABLE = "metrics.jsonl", "metrics.csv"
CONFIG, LAUNCH, SUMMARY = "config.yaml", "launch.json", "summary.json"
COMPRESSION, COMPRESSION_TABLE = "compression.json", "compression.md"
PROVENANCE, CONSOLE = "provenance.json", "console.log"  # where the run comes from, and what it said
TENSORBOARD = "tensorboard"  # folder of its event files
HASH_FITS = "hash_fits.png"  # what every fit of the hash functions was worth
RUN_FILES = (
    *(CONFIG, LAUNCH, SUMMARY, PROVENANCE, CONSOLE, TENSORBOARD, HASH_FITS, COMPRESSION, COMPRESSION_TABLE),
    *(LAST, PREVIOUS, BEST, TOP, METRICS, METRICS_TABLE),
)
RESULTS = (LAST, PREVIOUS, BEST, SUMMARY)  # what a run must not lose to another one
