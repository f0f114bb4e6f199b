"""Images in the rows of tables: parquet, and Hugging Face datasets saved to disk."""
