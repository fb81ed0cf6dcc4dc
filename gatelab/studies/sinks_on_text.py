"""Do natural-text sinks form without a gate, and does the gate keep them from forming? About 7 minutes a run on an H100.

The setting is one in which sinks were seen to form within 600M tokens: heads of 128 channels, no q/k-norm, a BOS token
at position 0 of every sequence, of which a quarter hold the end of a document. Attention stays within a document
(`data.document_mask`), here and in the studies that take up this setting; the rows of `docs/results/` are older and of sequences
in which it did not (`data.document_mask=false`), other runs than these, but for
`text-start-masked`. Give it a corpus of your own, and say what it is:

    gatelab run sinks-on-text data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin data.about='old English prose'
"""

from gatelab import Arm, ModelConfig, OptimConfig, ProbeConfig, Run, Study, Text, TrainConfig

text = Run(
    model=ModelConfig(d_model=512, n_layers=8, n_heads=4, d_ff=1344, tied_embeddings=True),
    data=Text(paths="train.bin", val_paths="val.bin", document_mask=True),
    optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, schedule="cosine", warmup=200 / 9155, final=0.1),
    train=TrainConfig(tokens=600_000_000, batch_size=64, seq_len=1024),
    probe=ProbeConfig(times=8, sequences=32, eval_sequences=234),
)

study = Study(
    name="sinks-on-text",
    question="On real text, does softmax attention form a first-token sink, and does an elementwise gate after attention "
    "change that, the largest activations and the held-out loss?",
    cells={"text": text},
    about={
        "text": "A decoder of 33 million weights, 8 layers, 4 heads of 128, context 1024, BOS at position 0, no q/k-norm."
    },
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("sdpa-elementwise", {"model.gate": "sdpa-elementwise"}, "elementwise gate"),
    ),
    seeds=1,
    match_unit=8,  # an FFN of 1173 channels misses tensor-core alignment: 1.15 of the ungated step on an H100, 1176 takes 1.03
)
