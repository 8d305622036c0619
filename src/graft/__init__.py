"""Graft: every parameter-efficient fine-tuning method on one frozen transformers model."""
