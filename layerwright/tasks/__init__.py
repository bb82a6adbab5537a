"""Learn labelled tasks with a trained backbone: tables of sentences, metrics and fine-tuning."""
