"""One file per LightningModule."""
