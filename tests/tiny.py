"""Options that make a backbone small enough for a test."""

TINY_VSE = [
    "--model.backbone=VSE",
    "--model.backbone.vision_config={model_type: vit, image_size: 32, patch_size: 16, hidden_size: 32, "
    "num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    "--model.backbone.text_config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, intermediate_size: 32, pad_token_id: null}",
    "--model.backbone.dim=32",
]

TINY_CLIP = [
    "--model.backbone=CLIP",
    "--model.backbone.config={embed_dim: 16, "
    "vision_cfg: {image_size: 32, layers: 1, width: 32, head_width: 16, patch_size: 16}, "
    "text_cfg: {context_length: 32, vocab_size: 49408, width: 16, heads: 2, layers: 1}}",
]
