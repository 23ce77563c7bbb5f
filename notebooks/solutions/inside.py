"""Solutions of notebooks 09 to 11. `minivl lab check inside.py` checks them."""

import functools
import operator

import numpy as np

from minivl import studies
from minivl.trace.edits import ablate_head


def reader(vlm, cases):
    atlas = studies.head_atlas(vlm, over=cases)
    share = atlas.mean[..., list(atlas.axes["role"]).index("question word")]  # [layers, heads]
    return tuple(int(i) for i in np.argwhere(share >= share.max() - 0.005)[0])


def right_without(vlm, cases, groups):
    counts = []
    for group in groups:
        layers = {layer: [head for at, head in group if at == layer] for layer, _ in group}
        edits = [ablate_head(vlm, f"model.layers.{layer}", heads) for layer, heads in layers.items()]
        edit = functools.reduce(operator.or_, edits)
        answers = [vlm.trace(c.question, images=c.images, keep=[], edit=edit, max_new_tokens=8).result for c in cases]
        counts.append(sum(str(answer) == case.answer for answer, case in zip(answers, cases)))
    return np.array(counts)


def crossing_layer(vlm, pairs):
    recovered = []
    for clean, corrupted in pairs:
        maps = vlm.trace(
            clean["question"], images=clean["images"], keep=["input_ids", "image_grid_thw"], stop="image_grid_thw"
        ).maps
        groups = {"image": np.flatnonzero(maps.shown), "last": [len(maps.input_ids) - 1]}
        prompts = [{name: prompt[name] for name in ("question", "images")} for prompt in (clean, corrupted)]
        answers = clean["answer"], corrupted["answer"]
        recovered.append(studies.patch_grid(vlm, *prompts, answers=answers, groups=groups).recovered)
    mean = np.mean(recovered, axis=0)  # [inputs_embeds and layers, (image, last)]
    return int(np.argmax(mean[:, 1] > mean[:, 0])) - 1


def order_effect(vlm, films):
    backwards = timeless = 0
    for film in films:
        question = film.question
        shown = vlm.trace(
            question, videos=film.videos, keep=["input_ids", "video_grid_thw"], stop="video_grid_thw"
        ).maps.shown

        def without_time(ids, shown=shown):
            ids = ids.copy()
            ids[0, shown] = ids[0, shown].min()
            return ids

        def answer(videos, edit=None, question=question):
            return str(vlm.trace(question, videos=videos, keep=[], edit=edit, max_new_tokens=8).result)

        usual = answer(film.videos)
        backwards += answer([frames[::-1] for frames in film.videos]) != usual
        timeless += answer(film.videos, {"position_ids": without_time}) != usual
    return backwards, timeless
