"""From messages to model inputs: chat template, tokenizer, images, videos."""
