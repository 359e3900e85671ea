"""What a test has shown: numbers, figures, tables and a page; `lightning_modules.callbacks.Report` writes them."""
