"""A model from the address that MODEL names: https, S3, Google Storage, Hugging Face, MLflow."""
