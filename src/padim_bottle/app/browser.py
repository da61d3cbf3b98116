"""The page: where a photo comes from, where it is drawn on, and where each model's answer stands."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from padim_bottle.app.judging import Answer, Model
from padim_bottle.app.uploads import Picture, draw_over, read_layers, read_upload, shrink
from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError, explain_failure
from padim_bottle.tables import template_of

HOST = "127.0.0.1"
MAX_FILE = "30mb"
MAX_WAITING = 16
MAX_SESSIONS = 16
"""A session keeps a photo in memory."""
FILE_SECONDS, SESSION_SECONDS = 120, 3600
"""How long uploads and pictures are kept, and how long an idle session is."""
PICKABLE = 24
"""Photos to pick from."""
BOARD_SIDE = 512
"""Pixels of the larger side of the drawing board, which travels to and fro with every stroke."""

TEMPLATES = Path(__file__).parent / "templates"
# The first is seen on every photo and in a dark toolbar; the others look like dirt, rust, glare and ink.
COLOURS = ["#b01818", "#101010", "#5a3a1a", "#f5f5f5", "#2f6fb0"]

INTRODUCTION = """\
# Is it like the good ones?

Drop, paste or take a photo, or pick one, and draw a defect on it: each model answers. Photos go to the machine that
this page runs on, and are deleted there after minutes.
"""
ALPHA = "How many good photos may be called anomalous. It moves the verdicts and the outlines; the colours stay."
HEATMAP = "Heatmap: dark is usual, bright is odd, outlined what is called anomalous"
FAULT = "This is a fault of the program: the terminal that it was started in says more."


class Desk:
    """Answers what happens on the page.

    Args:
        models: that judge.
        gallery: photos to pick from.
        uploads: folder that uploaded photos are stored below.
    """

    def __init__(self, models: Sequence[Model], gallery: Sequence[Path], uploads: Path) -> None:
        self.models = models
        self.gallery = gallery
        self.uploads = uploads.resolve()
        self._template = template_of("padim_bottle.app", "verdict.html.j2")

    def take(self, upload: dict[str, Any] | None) -> Any:
        """Lay an uploaded photo on the drawing board and judge it."""
        # Nothing has arrived yet where only the camera was switched on.
        if upload is None:
            return gr.skip()
        path = self._uploaded(upload)
        return self._lay(read_upload(path, upload["orig_name"] or path.name, self.models[0].read))

    def pick(self, picked: gr.SelectData) -> list[Any]:
        """Lay a photo of the gallery on the drawing board and judge it."""
        return self._lay(self.models[0].read(self.gallery[picked.index]))

    def draw(self, board: dict[str, Any] | None, photo: Picture | None) -> list[Answer]:
        """Judge the photo with what was drawn on it."""
        if photo is None:
            raise UserError("There is no photo here: drop, take or pick one first.")
        # The layers alone: the browser's copy of the photo is smaller and went through its colour management.
        return self._judge(
            draw_over(photo, read_layers([self._uploaded(layer) for layer in board["layers"]] if board else []))
        )

    def wipe(self, photo: Picture | None) -> Any:
        """Return what lies on the drawing board after it was cleared: the photo again."""
        return gr.skip() if photo is None else shrink(photo, BOARD_SIDE)

    def decide(self, answers: Sequence[Answer], alpha: float | None) -> Any:
        """Return the verdicts and the heatmaps at a false-alarm rate."""
        if not answers:
            return gr.skip()
        judged = [(answer, answer.at(alpha)) for answer in answers]
        words = [self._template.render(answer=answer, verdict=verdict, alpha=alpha) for answer, verdict in judged]
        return [*words, *(answer.heatmap(verdict) for answer, verdict in judged)]

    def _uploaded(self, upload: dict[str, Any]) -> Path:
        path = Path(upload["path"]).resolve()
        # A stranger could ask for any file of this machine.
        if not path.is_relative_to(self.uploads):
            raise UserError("This is no uploaded photo: drop, take or pick one.")
        return path

    def _lay(self, photo: Picture) -> list[Any]:
        return [shrink(photo, BOARD_SIDE), photo, self._judge(photo)]

    def _judge(self, photo: Picture) -> list[Answer]:
        return [model.judge(photo) for model in self.models]


def build_page(models: Sequence[Model], gallery: Sequence[Path], no_gallery: str | None = None) -> gr.Blocks:
    """Build the page.

    Args:
        models: stand side by side.
        gallery: photos to pick from; the first few are shown.
        no_gallery: why there are none.
    """
    thumbnails = list(_thumbnails(gallery[:PICKABLE]))
    pick = "Or pick one" + (f": the first {PICKABLE} of {len(gallery)}" if len(gallery) > PICKABLE else "")
    with gr.Blocks(title="PaDiM", analytics_enabled=False, delete_cache=(60, FILE_SECONDS)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(min_width=300):
                # The camera on the back of a phone, and not mirrored: positions count.
                camera = gr.WebcamOptions(mirror=False, constraints={"video": {"facingMode": "environment"}})
                upload = gr.Image(
                    label="Your photo", height=240, image_mode=None, buttons=[], webcam_options=camera, elem_id="upload"
                )
            with gr.Column(min_width=300):
                pickable = gr.Gallery(
                    [picture for _, picture in thumbnails], label=pick, format="jpeg",
                    visible=bool(thumbnails), height=240, object_fit="cover", allow_preview=False, interactive=False,
                    buttons=[], elem_id="gallery",
                )  # fmt: skip
                gr.Markdown(no_gallery, visible=no_gallery is not None)
        with gr.Row():
            with gr.Column(min_width=300):
                board = gr.ImageEditor(
                    label="Draw a defect", placeholder="# No photo yet", sources=[], transforms=[],
                    layers=False, buttons=[], interactive=True, brush=gr.Brush(colors=list(COLOURS)),
                    height="min(460px, 95vw)", canvas_size=(BOARD_SIDE, BOARD_SIDE), elem_id="board",
                )  # fmt: skip
                trained = next((model.alpha for model in models if model.alpha is not None), 0.05)
                alpha = gr.Slider(
                    0.001, 0.5, trained, step=0.001, label="alpha, the false-alarm rate", info=ALPHA, elem_id="alpha"
                )
            verdicts, heatmaps = [], []
            for model in models:
                with gr.Column(min_width=300):
                    verdicts.append(gr.HTML(f"<p><b>{escape(model.name)}</b></p><p>No photo yet.</p>"))
                    heatmaps.append(gr.Image(label=HEATMAP, interactive=False, buttons=["fullscreen"]))
        photo, answers = gr.State(time_to_live=SESSION_SECONDS), gr.State([], time_to_live=SESSION_SECONDS)
        desk = Desk(models, [path for path, _ in thumbnails], Path(page.GRADIO_CACHE))
        # Uploads and drawings as they come: Gradio would open files of any size itself, and answer a damaged one with a
        # traceback.
        raw = {"preprocess": False, "api_visibility": "private"}
        # One photo at a time: an exported model's memory is not for two.
        network = {"concurrency_id": "network", "concurrency_limit": 1}
        taken = upload.input(_in_words(desk.take), upload, [board, photo, answers], **raw, **network)
        # Made ready for the next one, also by a photo that could not be read.
        for done in (taken.success, taken.failure):
            done(lambda: None, None, upload, show_progress="hidden", api_visibility="private")
        picked = pickable.select(_in_words(desk.pick), None, [board, photo, answers], **raw, **network)
        drawn = board.input(
            _in_words(desk.draw), [board, photo], answers, trigger_mode="always_last", **raw, **network,
        )  # fmt: skip
        board.clear(_in_words(desk.wipe), photo, board, api_visibility="private")
        # By an event of its own, one after the other, at the rate of then: alpha moves while models are asked.
        decide = {
            "fn": _in_words(desk.decide), "inputs": [answers, alpha], "outputs": [*verdicts, *heatmaps],
            "concurrency_id": "verdicts", "concurrency_limit": 1, "show_progress": "hidden", **raw,
        }  # fmt: skip
        for asked in (taken, picked, drawn):
            asked.success(**decide)
        alpha.change(**decide, trigger_mode="always_last")
    return page


def _thumbnails(photos: Sequence[Path]) -> Iterator[tuple[Path, Picture]]:
    """Yield photos with small copies of them; one that cannot be read is not there to pick."""
    for path in photos:
        with suppress(UserError):
            yield path, shrink(read_image(path), 160)


def _in_words(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Answer with a sentence on the page when an error ends a handler."""

    @functools.wraps(handler)
    def explained(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except Exception as error:
            message = explain_failure(error)
            raise gr.Error(escape(message or FAULT), duration=30, print_exception=message is None) from error

    return explained


def _theme() -> gr.themes.Base:
    # The fonts of the system: none is fetched.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    # Gradio's own is too faint to read.
    return theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")


@contextmanager
def serve(page: gr.Blocks, port: int | None = None, *, share: bool = False) -> Iterator[str]:
    """Serve the page to this machine alone, or with ``share`` to everyone who knows the address of Gradio's tunnel.

    Args:
        page: what to serve.
        port: of this machine; a free one from 7860 on if not given.
        share: open the tunnel.

    Yields:
        The address.

    Raises:
        UserError: the port is taken or there is no way to the tunnel.
    """
    page.queue(max_size=MAX_WAITING, api_open=False)
    try:
        page.launch(
            server_name=HOST, server_port=port, share=share, prevent_thread_lock=True, quiet=True, inline=False,
            # What handlers say is shown in any case; what libraries say is not for strangers.
            show_error=False, max_file_size=MAX_FILE, state_session_capacity=MAX_SESSIONS, ssr_mode=False,
            footer_links=[], css_paths=[TEMPLATES / "page.css"], theme=_theme(),
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        taken = "The ports from 7860 on are" if port is None else f"Port {port} is"
        raise UserError(f"{taken} not to be had: name another with --port.") from error
    try:
        if share and page.share_url is None:
            raise UserError("Gradio's tunnel cannot be opened: is there a network? Without --share the app needs none.")
        yield page.share_url or page.local_url
    finally:
        page.close(verbose=False)
