"""The catalogue of tensors: one row for each tensor that a run makes, in the order in which it is made.

    of("visual.blocks.7.attn.q_rope").axes          # ("H", "N", "K")
    row_axis("visual.blocks.7.attn.q_rope")         # 1: its rows are patches, after the heads
    row_kind("visual.blocks.7.attn.q_rope")         # "patch slots": patches in window order
    level("visual.blocks.7.attn.q_rope")            # "tensor": a walk shows it at its finest level only
    in_data_flow(["lm_head", "visual.blocks.0.norm1"])      # the second comes first

What is known about a tensor stands here and nowhere else: docs/tensors.md is generated from it; edits by row, maps, heat
maps, channel statistics, the levels of a walk and the order of recordings read it. A tensor that a stage yields and that has a
row here can be recorded, edited by row, walked and explained. The longer texts of a walk are in texts_vision.py and
texts_decoder.py.

Axes: H' W' sides of a resized image, N patches, Ni of images, Nv of videos, P values of a patch, U units of 2x2 patches (one
token each), T tokens of this step, S tokens with the cached ones, D width, O width of the decoder, H heads, KV key heads,
K = D/H, I width of the MLP, L patches of the longest attention segment, V vocabulary, M images, B videos, E frames taken of a
video, W windows, F frames (one for each image, one for each pair of a video's frames).
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from minivl.errors import Error
from minivl.helpers import did_you_mean
from minivl.tensors.names import parse

LEVELS = ("stage", "block", "tensor")
SECTIONS = ("image", "video", "prompt", "tower", "decoder")
ROW_AXES = ("N", "Ni", "Nv", "U", "T", "E", "M", "B")  # those that count rows
ROW_KINDS = {  # what rows can be: where a row stands on the image
    "patches": "patches, unit by unit, raster order of units",
    "patch slots": "patches in window order",
    "token slots": "tokens in window order",
    "tokens": "tokens in raster order",
    "prompt": "tokens of the prompt",
}
WIDTHS = ("D", "3D", "4D", "O", "I", "P", "H*K", "KV*K")  # last axes whose entries are channels


@dataclass(frozen=True)
class Tensor:
    """One row of the catalogue.

    name     {i} counts images, videos, blocks and layers
    axes     sizes by letter, see above; numbers are sizes themselves
    dtype    "float32", "int64" or "uint8"
    rows     one of ROW_KINDS; "" where its rows have no place on the image
    level    the coarsest level of a walk that stops at it: "stage", "block" or "tensor"
    made_by  kind of operation: "norm", "linear", "gelu", ...; "" for indices and preparation
    meaning  one line
    section  one of SECTIONS
    lazy     built only when something asks for its values
    """

    name: str
    axes: tuple
    dtype: str
    rows: str
    level: str
    made_by: str
    meaning: str
    section: str
    lazy: bool = False

    @property
    def row_axis(self):
        """Which axis counts rows: 1 of [H, N, K] and [3, T], else 0."""
        return next((at for at, axis in enumerate(self.axes) if axis in ROW_AXES), 0)

    @property
    def has_channels(self):
        """Whether the last axis counts channels, as in [N, D]; not angles, scores, vocabulary, pixels."""
        return len(self.axes) == 2 and self.dtype == "float32" and self.axes[-1] in WIDTHS

    @property
    def has_length(self):
        """Whether the Euclidean norm of a row means something: rows of channels, or of a query or key in each head."""
        return self.has_channels or (self.dtype == "float32" and len(self.axes) == 3 and self.axes[-1] == "K")

    @property
    def is_chunked(self):
        """Whether a long prompt makes it chunk by chunk (`chunks.1.` and so on)."""
        return self.section == "decoder" and self.name.startswith(("model.rope", "model.layers", "model.norm"))


def _section(section, table):
    """Rows of a table of text: name | axes | rows | level | made by | meaning. No dtype after the axes means float32."""
    for line in table.strip().splitlines():
        name, axes, rows, level, made_by, meaning = (cell.strip() for cell in line.split("|"))
        *axes, dtype = axes.split() if axes.endswith(("int64", "uint8")) else [*axes.split(), "float32"]
        lazy = made_by in ("scores", "softmax")
        yield Tensor(name, tuple(axes), dtype, rows, level, made_by, meaning, section, lazy)


CATALOGUE = (
    *_section("image", """
image.{i}.resized                 | H' W' 3 uint8   |             | stage  |         | the image scaled so that its sides are multiples of 28
image.{i}.normalized              | 3 H' W'         |             | tensor |         | colours / 255, minus the mean, over the deviation, of each channel
image.{i}.patches                 | N P             |             | stage  |         | 14x14 patches, unit by unit; columns (channel, time, y, x), the image twice in time
"""),
    *_section("video", """
video.{i}.frame_indices           | E int64         |             | stage  |         | which of its frames are taken
video.{i}.second_per_grid_t       | 1               |             | stage  |         | seconds from one pair of frames to the next
video.{i}.resized                 | E H' W' 3 uint8 |             | stage  |         | these frames, scaled so that their sides are multiples of 28
video.{i}.normalized              | E 3 H' W'       |             | tensor |         | colours / 255, minus the mean, over the deviation, of each channel
video.{i}.patches                 | N P             |             | stage  |         | 14x14 patches of two frames, pair by pair; an odd last frame counts twice
"""),
    *_section("prompt", """
input_ids                         | T int64         | prompt      | stage  |         | tokens of the prompt; a placeholder repeated for each unit of its image or video
pixel_values                      | Ni P            | patches     | tensor |         | the patches of all images
image_grid_thw                    | M 3 int64       |             | tensor |         | frames, patch rows, patch columns of each image
pixel_values_videos               | Nv P            |             | tensor |         | the patches of all videos
video_grid_thw                    | B 3 int64       |             | tensor |         | pairs of frames, patch rows, patch columns of each video
"""),
    *_section("tower", """
visual.window_index               | U int64         | token slots | stage  |         | raster index of the unit that stands i-th in window order
visual.cu_window_seqlens          | W+1 int64       |             | stage  |         | where each window starts and ends, in patches
visual.cu_seqlens                 | F+1 int64       |             | tensor |         | where each frame starts and ends, in patches
visual.patch_positions            | N 2 int64       | patches     | tensor |         | row and column of each patch in its frame
visual.patch_embed                | N D             | patches     | stage  | linear  | each patch as D numbers
visual.window_order               | N D             | patch slots | tensor | reorder | the same rows in window order
visual.rope.cos                   | N K             | patch slots | tensor | angles  | cosines of the (row, column) angles
visual.rope.sin                   | N K             | patch slots | tensor | angles  | sines of the same
visual.blocks.{i}.norm1           | N D             | patch slots | tensor | norm    | RMSNorm of the block's input
visual.blocks.{i}.attn.qkv        | N 3D            | patch slots | tensor | linear  | queries, keys, values side by side, each head by head
visual.blocks.{i}.attn.q_rope     | H N K           | patch slots | tensor | rotate  | queries, rotated by row and column
visual.blocks.{i}.attn.k_rope     | H N K           | patch slots | tensor | rotate  | keys, rotated
visual.blocks.{i}.attn.scores     | H N L           | patch slots | tensor | scores  | q·k/sqrt(K) inside the segment
visual.blocks.{i}.attn.probs      | H N L           | patch slots | tensor | softmax | their softmax
visual.blocks.{i}.attn.context    | N D             | patch slots | tensor | mix     | probs·v, heads side by side
visual.blocks.{i}.attn.proj       | N D             | patch slots | tensor | linear  | output of attention
visual.blocks.{i}.attn_residual   | N D             | patch slots | tensor | add     | block input + attention
visual.blocks.{i}.norm2           | N D             | patch slots | tensor | norm    | RMSNorm of that
visual.blocks.{i}.mlp.gate_proj   | N I             | patch slots | tensor | linear  | gate of the MLP
visual.blocks.{i}.mlp.up_proj     | N I             | patch slots | tensor | linear  | values that the gate multiplies
visual.blocks.{i}.mlp.act         | N I             | patch slots | tensor | swiglu  | silu(gate)·up
visual.blocks.{i}.mlp.down_proj   | N D             | patch slots | tensor | linear  | output of the MLP
visual.blocks.{i}                 | N D             | patch slots | block  | add     | attn_residual + MLP
visual.merger.ln_q                | N D             | patch slots | tensor | norm    | RMSNorm of each patch
visual.merger.mlp.0               | U 4D            | token slots | tensor | linear  | first linear layer, of the 4 patches of a unit side by side
visual.merger.mlp.1               | U 4D            | token slots | tensor | gelu    | exact GELU
visual.merger.mlp.2               | U O             | token slots | tensor | linear  | second linear layer
visual.merger                     | U O             | token slots | stage  | linear  | the units as tokens, still in window order
visual                            | U O             | tokens      | stage  | reorder | the same in raster order, image after image, then video after video
"""),
    *_section("decoder", """
model.embed_tokens                | T D             | prompt      | stage  | lookup  | a row of the embedding table for each token
inputs_embeds                     | T D             | prompt      | stage  | scatter | the same, tokens of images and videos in place of their placeholders
position_ids                      | 3 T int64       | prompt      | stage  |         | M-RoPE positions: time, row, column
rope_delta                        | 1 int64         |             | tensor |         | next token's position minus number of tokens: above 0 only after long videos
model.rope.cos                    | T K             | prompt      | tensor | angles  | cosines, the sections of t, h, w side by side
model.rope.sin                    | T K             | prompt      | tensor | angles  | sines of the same
model.layers.{i}.input_layernorm  | T D             | prompt      | tensor | norm    | RMSNorm of the layer's input
model.layers.{i}.self_attn.q_proj | T H*K           | prompt      | tensor | linear  | queries
model.layers.{i}.self_attn.k_proj | T KV*K          | prompt      | tensor | linear  | keys
model.layers.{i}.self_attn.v_proj | T KV*K          | prompt      | tensor | linear  | values
model.layers.{i}.self_attn.q_rope | H T K           | prompt      | tensor | rotate  | queries, rotated
model.layers.{i}.self_attn.k_rope | KV T K          | prompt      | tensor | rotate  | keys, rotated: what the cache keeps
model.layers.{i}.self_attn.scores | H T S           | prompt      | tensor | scores  | q·k/sqrt(K), -inf for later tokens
model.layers.{i}.self_attn.probs  | H T S           | prompt      | tensor | softmax | their softmax
model.layers.{i}.self_attn.context | T H*K          | prompt      | tensor | mix     | probs·v, heads side by side
model.layers.{i}.self_attn.o_proj | T D             | prompt      | tensor | linear  | output of attention
model.layers.{i}.attn_residual    | T D             | prompt      | tensor | add     | layer input + attention
model.layers.{i}.post_attention_layernorm | T D     | prompt      | tensor | norm    | RMSNorm of that
model.layers.{i}.mlp.gate_proj    | T I             | prompt      | tensor | linear  | gate of the MLP
model.layers.{i}.mlp.up_proj      | T I             | prompt      | tensor | linear  | values that the gate multiplies
model.layers.{i}.mlp.act          | T I             | prompt      | tensor | swiglu  | silu(gate)·up
model.layers.{i}.mlp.down_proj    | T D             | prompt      | tensor | linear  | output of the MLP
model.layers.{i}                  | T D             | prompt      | block  | add     | attn_residual + MLP
model.norm                        | T D             | prompt      | stage  | norm    | RMSNorm of the last layer
lm_head                           | 1 V             |             | stage  | linear  | logits of the last token
next_token                        | 1 int64         |             | stage  | sample  | the chosen token; send another back and the answer continues from it
"""),
)  # fmt: skip


def by_name():
    """{general name: Tensor}"""
    return {tensor.name: tensor for tensor in CATALOGUE}


def of(name):
    """The catalogue's row of a tensor; None for one that is not the model's own."""
    return by_name().get(parse(name).general)


def row_axis(name, ndim=None):
    """Which axis of a tensor counts its rows. For a name outside the catalogue: 0, if it has at most two axes."""
    tensor = of(name)
    if tensor is None and ndim is not None and ndim > 2:
        raise Error(
            f"{name} is not in the catalogue of tensors (docs/tensors.md), so which of its {ndim} axes counts rows is unknown. "
            "Give the edit as a function of the tensor."
        )
    return 0 if tensor is None else tensor.row_axis


def row_kind(name):
    """The kind of a tensor's rows: a key of ROW_KINDS. Such a key is taken too, and a glob of names that have one kind.

    row_kind("visual.blocks.3.mlp.act") -> "patch slots"
    """
    if name in ROW_KINDS:
        return name
    general = parse(name).general
    kinds = {tensor.rows for tensor in CATALOGUE if tensor.rows and matches(tensor.name, general)}
    if len(kinds) != 1:
        known = "; ".join(f"{kind} ({meaning})" for kind, meaning in ROW_KINDS.items())
        raise Error(f"the rows of {name} have no place on the image. Known kinds of rows: {known}.")
    return kinds.pop()


def matches(general, pattern):
    """Whether a general name is one that this glob, or name with {i} in it, stands for."""
    return general == pattern or fnmatchcase(general.replace("{i}", "0"), pattern.replace("{i}", "0"))


def level(name):
    """The coarsest level of a walk that stops at this tensor: "stage", "block" or "tensor".

    Of later tokens and chunks, stages are shown at the finest level only; next_token always.
    """
    tensor, parsed = of(name), parse(name)
    if tensor is None:
        return "tensor"
    if tensor.level == "stage" and parsed.prefix and tensor.name != "next_token":
        return "tensor"
    return tensor.level


def check_name(config, name):
    """Raise an Error unless a run of this model can make a tensor of this name, or one that this glob matches."""
    if not isinstance(name, str):
        raise Error(f"{name!r} is no name. Give one of docs/tensors.md, or a glob such as visual.blocks.*.")
    parsed, glob = parse(name), bool(set(name) & set("*?["))
    if glob and any(
        fnmatchcase(known, parsed.own) or fnmatchcase(f"steps.1.{known}", name) for known in names_of(config)
    ):
        return
    beyond = parsed.index is not None and parsed.index >= counts(config).get(parsed.counted, float("inf"))
    known = by_name()
    if not glob and parsed.general in known and not beyond:
        return
    number = str(parsed.index) if parsed.index is not None and not beyond else "0"
    names = [general.replace("{i}", "*" if glob else number) for general in known]
    raise Error(f"no tensor is called {name}.{did_you_mean(parsed.own, names) or ' docs/tensors.md lists all.'}")


def counts(config):
    """{"visual.blocks": depth, "model.layers": layers}"""
    return {"visual.blocks": config.vision.depth, "model.layers": config.text.num_hidden_layers}


def names_of(config, media=20):
    """Names that a run with `media` images and videos may make; the prompt's, which steps and chunks share."""
    for tensor in CATALOGUE:
        number = counts(config).get(tensor.name.partition(".{i}")[0], media) if "{i}" in tensor.name else 1
        for i in range(number):
            yield tensor.name.replace("{i}", str(i))


# ---- order ----


def in_data_flow(names):
    """The same names, in the order in which a run makes them; names outside the catalogue come last, in the order given."""
    order = {tensor.name: number for number, tensor in enumerate(CATALOGUE)}
    chunked = [order[tensor.name] for tensor in CATALOGUE if tensor.is_chunked]
    starts = {}  # of each {i} group: a block's tensors stay together
    for tensor in CATALOGUE:
        starts.setdefault(parse(tensor.name).counted, order[tensor.name])

    def position(name):
        parsed = parse(name)
        if parsed.general not in order:
            return (1, parsed.step)
        number = order[parsed.general]
        stretch = 0 if number < chunked[0] else 1 if number <= chunked[-1] else 2
        group = starts[parsed.counted] if parsed.counted else number
        return (0, parsed.step, stretch, parsed.chunk, group, parsed.index or 0, number)

    return sorted(names, key=position)
