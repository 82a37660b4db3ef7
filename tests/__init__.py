"""Tests of TinyLoRA, one folder per part of the house."""
