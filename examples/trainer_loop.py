"""Prunes in transformers' Trainer: a small BERT loses 40 % of its MACs in two cuts while it learns.

The task: is the first token from the upper half of the vocabulary? Needs ``pip install 'topiarist[hf]'``. Run it
with ``python examples/trainer_loop.py``; it takes about ten seconds.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from topiarist.integrations.huggingface_trainer import PruningCallback

torch.manual_seed(0)
tokens = torch.randint(4, 50, (512, 8))
labels = (tokens[:, 0] >= 27).long()
data = [{"input_ids": line, "labels": label} for line, label in zip(tokens, labels, strict=True)]
config = BertConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=8,
    num_labels=2,
)
model = BertForSequenceClassification(config)

example = {"input_ids": tokens[:2], "labels": labels[:2]}
pruning = PruningCallback("l1", 0.6, at=[40, 80], example_inputs=example, outputs="logits")
arguments = TrainingArguments(
    "runs/trainer",
    num_train_epochs=10,
    per_device_train_batch_size=32,
    learning_rate=5e-3,
    logging_steps=40,
    save_steps=60,
    report_to="none",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model, arguments, train_dataset=data, callbacks=[pruning])
trainer.train()  # after a stop: trainer.train(resume_from_checkpoint=pruning.resume("runs/trainer/checkpoint-60"))

for log in trainer.state.log_history[:-1]:
    print(f"step {log['step']}: loss {log['loss']:.3f}, {log['pruning/macs']:,.0f} MACs")
