"""Train a small VggtModel from scratch on synthetic scenes; resumable, on a CPU, one GPU or several.

    python examples/train_tiny_vggt.py runs/tiny --minutes 22 --compile --stop-after-seconds 560
    python examples/train_tiny_vggt.py runs/tiny --minutes 22 --compile --resume --export runs/tiny/export
    python examples/train_tiny_vggt.py runs/finer --minutes 22 --compile --start-from runs/tiny/export

The learning rate follows a cosine over the whole training, set by `--minutes` or `--steps`, over as many
calls as it takes; each call gets the same options. A step draws its scenes by its own number: a resumed run
sees what an unbroken one would. `accelerate launch ...` trains on several GPUs.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast
from muon import Muon, is_inner_matrix
from tiny_vggt_recipe import EXAMINED_VIEWS, Lesson, Recipe, draw_lesson, examine, make_batch
from torch import nn
from tqdm import tqdm

from hess_plugin.models.vggt import VggtModel

BEAT = 20  # steps between looks at the clock; each waits for the GPU
CLIP = 1.0
AVERAGE_STEPS = 1000  # memory of the moving average of the weights
KEPT_OF_START = 1 / 3  # of the weights that a training continues


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for checkpoint.pt and log.jsonl")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="length of the whole training in steps")
    length.add_argument("--minutes", type=float, help="length of the whole training in minutes")
    parser.add_argument("--start-from", metavar="FOLDER", help="a saved model; no easy lessons")
    parser.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    parser.add_argument("--stop-after-seconds", type=float, default=math.inf, help="save and end this call")
    parser.add_argument("--save-every", type=float, default=120, metavar="SECONDS")
    parser.add_argument("--examine-every", type=float, default=180, metavar="SECONDS")
    parser.add_argument("--scenes", type=int, default=32, help="held-out scenes of an examination")
    parser.add_argument("--real", type=Path, nargs="+", default=[], metavar="FOLDER", help="to examine")
    parser.add_argument("--export", type=Path, help="folder for the finished float16 model")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--warmup", type=int, default=300, metavar="STEPS")
    parser.add_argument(
        "--seed", type=int, default=0, help="draws other scenes; a continued training needs its own"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile blocks and dense heads")
    parser.add_argument("--toy", action="store_true", help="a model of toy size, for tests")
    return parser.parse_args(arguments)


class Training:
    """All that changes while training, as one thing to save and to continue."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.started = args, time.monotonic()
        cuda = torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no")
        self.device = self.accelerator.device
        self.recipe = Recipe.toy() if args.toy else Recipe()
        torch.manual_seed(args.seed)
        model = self.recipe.build_model()
        if args.start_from is not None:
            model = VggtModel.from_pretrained(args.start_from, dtype=torch.float32).train()
            self.recipe = replace(self.recipe, ramp=0.0)
        self.model = model.to(self.device)
        self.start = copy.deepcopy(self.model) if args.start_from is not None else None
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        matrices = [p for name, p in self.model.named_parameters() if is_inner_matrix(name, p)]
        inner = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in inner]
        self.optimizers = [
            Muon(matrices, args.learning_rate, weight_decay=0.02),
            torch.optim.AdamW(others, args.learning_rate, betas=(0.9, 0.95), weight_decay=0.02, fused=cuda),
        ]
        self.step, self.seconds, self.progress, self.examination = 0, 0.0, 0.0, {}
        if args.resume:
            self.load()
        self.seconds_before = self.seconds
        lesson = Lesson(self.model)
        if args.compile:
            self.compile(lesson)
        self.lesson = self.accelerator.prepare(lesson)

    def compile(self, lesson: Lesson) -> None:
        """Compile the parts that repeat. The renderer stays as it is: compiling it would take minutes."""
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.optimize_ddp = False  # would split what is smaller than its buckets
        for block in self.model.aggregator.frame_blocks:
            block.compile(dynamic=False)
        for module in (*self.model.aggregator.global_blocks, self.model.camera_head):
            module.compile(dynamic=True)  # the number of views differs from step to step
        lesson.camera_loss = torch.compile(lesson.camera_loss, dynamic=True)
        self.model.point_head.compile(dynamic=False)
        self.model.depth_head.compile(dynamic=False)

    @property
    def checkpoint(self) -> Path:
        return self.args.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the old one in place."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        self.args.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def load(self) -> None:
        """Continue from the checkpoint."""
        if not self.checkpoint.exists():
            raise SystemExit(f"--resume: there is no {self.checkpoint}; start without --resume.")
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def look_at_clock(self) -> bool:
        """Update the progress, equal in all processes; True when this call should end."""
        self.seconds = self.seconds_before + time.monotonic() - self.started
        args = self.args
        progress = self.step / args.steps if args.steps else self.seconds / (60 * args.minutes)
        over = time.monotonic() - self.started >= args.stop_after_seconds
        clock = broadcast(torch.tensor([progress, float(over)], device=self.device))
        self.progress, over = min(1.0, clock[0].item()), bool(clock[1])
        return over or self.progress >= 1

    def learn(self) -> dict[str, torch.Tensor]:
        """One step; the terms of its loss stay on the device."""
        rate = self.args.learning_rate * min(1, (self.step + 1) / self.args.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * self.progress))
        # Held-out scenes have seeds below 2^32.
        seed = ((self.args.seed + 1) << 32) + self.step * 1024 + self.accelerator.process_index
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            drawn, dense_views = draw_lesson(self.recipe, self.progress, self.step, generator)
            batch = make_batch(*drawn)
        terms = self.lesson(batch, dense_views)
        self.accelerator.backward(terms["loss"])
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        with torch.no_grad():
            new = 1 / min(AVERAGE_STEPS, 1 + self.step / 10)
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), new)
        return {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def finished(self) -> VggtModel:
        """The averaged weights; of a continued training, mixed with those it started from.

        Such a mean keeps what was learned and more of what was known; where both were examined, it was better
        than either on photos, which neither has seen ("Robust fine-tuning of zero-shot models", Wortsman et
        al., 2022; figures in CONTRIBUTING.md).
        """
        model = copy.deepcopy(self.average)
        if self.start is not None:
            torch._foreach_lerp_(list(model.parameters()), list(self.start.parameters()), KEPT_OF_START)
        return model

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Append one line to the log."""
        if not self.accelerator.is_main_process:
            return
        self.args.folder.mkdir(parents=True, exist_ok=True)
        entry = {"kind": kind, "step": self.step, "seconds": round(self.seconds, 1)} | values
        with (self.args.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")


def examine_finished(training: Training) -> None:
    """Test the finished weights on held-out and on real scenes, in the main process."""
    if training.accelerator.is_main_process:
        size, args = training.recipe.image_sizes[0], training.args
        marks = examine(training.finished(), size, args.scenes, args.real)
        for name, values in marks.items():
            training.record("examination", {"scenes": name} | values)
            line = ", ".join(f"{key} {value:.4f}" for key, value in values.items())
            tqdm.write(f"step {training.step}, {training.seconds:.0f} s, {name}: {line}")
        training.examination = marks["held_out"]


def train(training: Training) -> None:
    """Learn until the clock or the steps say stop; log, test and save on the way."""
    args = training.args
    beat = 1 if args.steps else BEAT
    saved = examined = time.monotonic()
    bar = tqdm(total=100, unit="%", disable=not training.accelerator.is_main_process, mininterval=5)
    while True:
        if training.step % beat == 0 and training.look_at_clock():
            break
        terms = training.learn()
        if training.step % BEAT:
            continue
        values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise SystemExit(f"step {training.step}: loss {values['loss']}; --resume at a lower rate.")
        training.record("train", values | {"progress": training.progress})
        bar.set_postfix(step=training.step, **{name: f"{value:.3f}" for name, value in values.items()})
        bar.update(round(100 * training.progress, 2) - bar.n)
        if time.monotonic() - saved > args.save_every:
            training.save()
            saved = time.monotonic()
        if time.monotonic() - examined > args.examine_every:
            examine_finished(training)
            examined = time.monotonic()
    bar.close()
    training.save()


def export(training: Training, folder: Path) -> None:
    """Write the finished model in float16 and how it came about."""
    args, size = training.args, training.recipe.views_per_step * training.accelerator.num_processes
    model = training.finished().half()
    model.save_pretrained(folder)
    cuda = training.device.type == "cuda"
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": training.step,
        "views_seen": training.step * size,
        "seconds": round(training.seconds, 1),
        "processes": training.accelerator.num_processes,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "started_from": args.start_from,
        "kept_of_start": KEPT_OF_START if args.start_from is not None else 0.0,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "held_out_scenes": {"seeds": [0, args.scenes - 1], "views": EXAMINED_VIEWS} | training.examination,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    training = Training(parse_arguments(arguments))
    train(training)
    examine_finished(training)
    if training.args.export is not None and training.accelerator.is_main_process:
        export(training, training.args.export)
    training.accelerator.end_training()


if __name__ == "__main__":
    main()
