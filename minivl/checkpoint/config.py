"""The configuration of a model, as frozen dataclasses with the field names of the checkpoint's config.json.

config = Config.read(folder)                # whatever the layout of its file: see config_json.py
config.text.num_hidden_layers, config.vision.window_size, config.image_token_id
Config.named("72B")                         # a published size, without any file
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minivl.checkpoint.config_json import parse_config
from minivl.checkpoint.presets import PUBLISHED, VISION_THETA, published_config
from minivl.checkpoint.unsupported import check_no_adapter
from minivl.errors import Error
from minivl.helpers import read_json


@dataclass(frozen=True)
class VisionConfig:
    """The tower. Sizes in values, `patch_size` and `window_size` in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple
    out_hidden_size: int
    tokens_per_second: float
    hidden_act: str
    rope_theta: ClassVar = VISION_THETA

    @property
    def head_dim(self):
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self):
        """Values in a patch, 1176 in the published models: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self):
        """Patches that become one token: 4."""
        return self.spatial_merge_size**2

    @property
    def merged_size(self):
        """Side of one token in pixels: 28."""
        return self.patch_size * self.spatial_merge_size


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the decoder. The fields after `rope_type` matter for "yarn" only."""

    rope_theta: float
    mrope_section: tuple
    rope_type: str = "default"
    factor: float = None
    original_max_position_embeddings: int = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = None
    truncate: bool = True


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    max_position_embeddings: int
    use_sliding_window: bool
    sliding_window: int
    max_window_layers: int
    hidden_act: str
    rope: RopeConfig

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    def layer_window(self, layer):
        """How many tokens this layer looks back, itself included; None: all. Published configs never limit it."""
        limited = self.use_sliding_window and self.sliding_window is not None and layer >= self.max_window_layers
        return self.sliding_window if limited else None


@dataclass(frozen=True)
class Config:
    """A whole model. `eos_token_id` is a tuple; token ids that config.json lacks are the published ones."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    bos_token_id: int
    eos_token_id: tuple
    tie_word_embeddings: bool

    @classmethod
    def read(cls, path):
        """Read a config.json, or that of a checkpoint folder."""
        path = Path(path)
        try:
            if path.is_dir():
                check_no_adapter(path)
                path = path / "config.json"
            exists = path.is_file()
        except OSError as cause:
            raise Error(f"cannot read {path}: {cause.strerror}. Make the folder readable.") from None
        if not exists:
            raise Error(f"{path} does not exist. A checkpoint folder needs its config.json.")
        return cls.from_dict(read_json(path))

    @classmethod
    def from_dict(cls, stored):
        """Build a Config from the contents of a config.json, in any layout."""
        fields = parse_config(stored)
        text, vision = fields.pop("text"), fields.pop("vision")
        rope, layer_types = RopeConfig(**text.pop("rope")), text.pop("layer_types")
        config = cls(TextConfig(**text, rope=rope), VisionConfig(**vision), **fields)
        check_layer_types(config.text, layer_types)
        return config

    @classmethod
    def named(cls, size):
        """The published configuration of "3B", "7B", "32B" or "72B"."""
        if size not in PUBLISHED:
            raise Error(f"no published size {size!r}. There are: {', '.join(PUBLISHED)}.")
        return cls.from_dict(published_config(**PUBLISHED[size]))


def check_layer_types(text, stored):
    """Check layer_types. subtle: in transformers 5 it takes precedence over the three fields that it was made from."""
    if stored is None:
        return
    windows = [text.layer_window(i) for i in range(text.num_hidden_layers)]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    if stored != kinds:
        raise Error(
            f"layer_types is {stored!r}; use_sliding_window ({text.use_sliding_window}), sliding_window "
            f"({text.sliding_window}) and max_window_layers ({text.max_window_layers}) make it {kinds}. "
            "minivl goes by those three: make them agree."
        )
