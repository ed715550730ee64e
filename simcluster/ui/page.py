"""The page of ``simcluster ui``, drawn by NiceGUI: a scenario at the left, answers at the right."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastapi.responses import FileResponse, PlainTextResponse, Response
from nicegui import app, events, run, ui

from simcluster.catalog import KINDS, PACKAGED
from simcluster.errors import SimclusterError
from simcluster.scenario.file import resolve
from simcluster.scenario.remarks import refuse_unused
from simcluster.show.text import heading
from simcluster.ui import facts, form
from simcluster.ui.jobs import Job, Jobs

QUESTIONS: Final[Mapping[str, str]] = {
    "compare": "How do the strategies behave, rate by rate?",
    "goodput": "How much does each strategy sustain, and how sure is that?",
    "rank": "Which strategy, parallelism and split is best, of all that fit?",
    "run": "What happens in one run?",
    "plan": "How many GPUs, which strategy, at what cost? (by the facts alone)",
}
_OPTIONS: Final[Mapping[str, Sequence[tuple[str, str, str]]]] = {
    "goodput": (("--tolerance", "Half width of the intervals", "0.03"),),
    "rank": (("--need", "Cheapest plans for this rate (requests/s)", ""),),
    "run": (
        ("--strategy", "Strategy (the first, if empty)", ""),
        ("--rate", "Rate (requests/s; the scenario's, if empty)", ""),
    ),
}
"""By command: options that the page asks for, each with its label and its first value."""
_SUGGESTED: Final[Mapping[str, str]] = {
    "name": "model",
    "gpu": "gpu",
    "node": "node",
    "fabric": "link",
    "network": "link",
    "profile": "engine",
    "lengths": "lengths",
}
"""By key: the kind of the catalogue's entries that it names."""
_UPLOAD_BYTES: Final = 500_000_000
_STATES: Final[Mapping[str, tuple[str, str]]] = {
    "running": ("hourglass_top", "primary"),
    "done": ("check_circle", "positive"),
    "not settled": ("help", "warning"),
    "failed": ("error", "negative"),
    "stopped": ("cancel", "warning"),
}
_SANDBOX: Final = "sandbox allow-scripts allow-downloads allow-popups"
"""What a report may do: it is a page of its own, with names that come from files."""


class Page:
    """What one browser tab sees.

    Parameters
    ----------
    jobs : Jobs
        The commands of all tabs.
    text : str
        The scenario that is there at first.
    """

    def __init__(self, jobs: Jobs, text: str) -> None:
        self._jobs = jobs
        self._text = text
        self._shown: Job | None = None
        self._checked = ""
        self._opened = {"[model]", "[cluster]"}
        """Sections of the form that are open."""
        self._facts = {fact.option: fact.value for fact in facts.FACTS}
        self._options: dict[str, str] = {}
        self._draw()

    # What is on the page

    def _draw(self) -> None:
        ui.colors(primary="#0b5c8a")
        ui.add_css(".q-uploader__list { display: none }")
        # Not NiceGUI's completion: on Tab it puts "H100 NVL" in place of "H100".
        for kind in KINDS:
            names = "".join(
                f"<option>{html.escape(name)}</option>" for name in PACKAGED.names(kind)
            )
            ui.add_body_html(f'<datalist id="names-{kind}">{names}</datalist>')
        with ui.header().classes("items-center q-py-sm"):
            ui.label("simcluster").classes("text-h6")
            ui.label("Which serving strategy sustains the most requests within targets?")
        with ui.row().classes("w-full no-wrap items-start gap-6"):
            with ui.column().classes("w-[30rem] shrink-0"):
                self._draw_scenario()
            with ui.column().classes("grow min-w-0"):
                self._draw_question()
                self._draw_answers()
        ui.timer(0.5, self._refresh_states)
        ui.timer(0.5, self._check)
        self._set_text(self._text)

    def _draw_scenario(self) -> None:
        with ui.tabs().classes("w-full") as tabs:
            ui.tab("facts", "A few facts")
            ui.tab("keys", "All keys")
            ui.tab("file", "File")
        with ui.tab_panels(tabs, value="facts").classes("w-full"):
            with ui.tab_panel("facts"):
                self._draw_facts()
            with ui.tab_panel("keys"):
                self._form = ui.column().classes("w-full gap-1")
            with ui.tab_panel("file"):
                self._draw_file()
        ui.separator()
        ui.label("What it is").classes("text-subtitle2")
        self._verdict = ui.label().classes("verdict text-xs whitespace-pre-wrap")

    def _draw_question(self) -> None:
        with ui.row().classes("w-full items-center no-wrap"):
            self._question = ui.select(
                dict(QUESTIONS), value="compare", label="Question", on_change=self._draw_options
            ).classes("grow")
            ui.button("Answer", icon="play_arrow", on_click=self._answer)
            self._stop = ui.button("Stop", icon="stop", on_click=self._interrupt).props("outline")
        self._option_row = ui.row().classes("w-full")
        self._draw_options()

    def _draw_facts(self) -> None:
        with ui.grid(columns=2).classes("w-full gap-x-4 gap-y-1"):
            for fact in facts.FACTS:
                box = ui.input(fact.label).bind_value(self._facts, fact.option)
                box.classes("col-span-2" if fact.option == "model" else "")
                if fact.hint:
                    # Below the box, however many lines it has, and not in the space of one.
                    box.props(f'hint="{fact.hint}" hide-bottom-space')
                if fact.option in ("model", "gpu"):
                    box.props(f"list=names-{fact.option}")
        ui.button("Write the scenario", icon="edit_note", on_click=self._write).classes("q-mt-md")

    def _draw_file(self) -> None:
        self._editor = ui.codemirror(
            self._text, language="TOML", on_change=lambda e: self._set_text(e.value)
        ).classes("w-full h-[28rem]")
        with ui.row().classes("items-center"):
            ui.button("Download", icon="download", on_click=self._download).props("outline")
            ui.upload(
                label="Upload a scenario (.toml)",
                on_upload=self._take_scenario,
                auto_upload=True,
                max_file_size=_UPLOAD_BYTES,
            ).props("accept=.toml flat bordered").classes("w-[26rem]")
            ui.upload(
                label="Upload a trace, which the requests then follow",
                on_upload=self._take_trace,
                auto_upload=True,
                max_file_size=_UPLOAD_BYTES,
            ).props("flat bordered").classes("w-[26rem]")

    def _draw_options(self) -> None:
        self._option_row.clear()
        self._options = {name: value for name, _, value in self._asked()}
        with self._option_row:
            for name, label, _ in self._asked():
                ui.input(label).bind_value(self._options, name).classes("grow")

    def _asked(self) -> Sequence[tuple[str, str, str]]:
        return _OPTIONS.get(str(self._question.value), ())

    def _draw_answers(self) -> None:
        with ui.row().classes("items-center w-full"):
            ui.label("Answers").classes("text-h6 grow")
            self._compared = ui.select([], label="What differs from").classes("w-64")
            ui.button("Show differences", icon="difference", on_click=self._difference).props(
                "outline"
            )
        self._list = ui.row().classes("w-full gap-2")
        self._bar = ui.linear_progress(show_value=False).classes("w-full")
        self._words = ui.label().classes("text-body2")
        self._said = ui.column().classes("w-full gap-0")
        self._body = ui.column().classes("w-full")
        self._listed: tuple[tuple[int, str], ...] = ((0, ""),)
        if self._jobs.all:
            self._show(self._jobs.all[max(self._jobs.all)])
        else:
            with self._body:
                ui.label("None yet: choose a question, and press Answer.")

    # The scenario

    def _set_text(self, text: str, *, drawn: bool = False) -> None:
        """Take a text as the scenario, and show it wherever it is shown."""
        changed = text != self._text
        self._text = text
        if self._editor.value != text:
            self._editor.value = text
        if not drawn or changed:
            self._draw_form()

    async def _check(self) -> None:
        """Say what the scenario is, or the first thing that is wrong with it."""
        if self._checked == self._text:
            return
        self._checked = self._text
        found = await run.io_bound(_verdict, self._text, self._jobs.folder)
        if found is None:
            return  # the page is being closed
        self._verdict.text, right = found
        self._verdict.classes(
            remove="text-negative text-grey-8", add="text-grey-8" if right else "text-negative"
        )

    def _draw_form(self) -> None:
        try:
            sections = form.sections(self._text)
        except SimclusterError as error:
            self._form.clear()
            with self._form:
                ui.label(str(error)).classes("text-negative")
            return
        self._form.clear()
        with self._form:
            for section in sections:
                self._draw_section(section)
            with ui.row().classes("items-center"):
                ui.label("Add a strategy:")
                for kind in form.strategy_kinds():
                    ui.button(
                        kind, on_click=lambda kind=kind: self._change(form.with_strategy, kind)
                    ).props("outline dense no-caps")

    def _draw_section(self, section: form.Section) -> None:
        given = sum(bool(one.value) for one in section.fields)
        title = section.title + (f" · {given} set" if given else "")
        opened = section.title in self._opened
        box = ui.expansion(title, value=opened).classes("w-full")
        if opened:
            self._fill_section(box, section)
        box.on_value_change(lambda e: self._open_section(e.value, box, section))

    def _open_section(self, opened: bool, box: ui.expansion, section: form.Section) -> None:
        """Draw the keys of a section when somebody looks at them for the first time."""
        if not opened:
            self._opened.discard(section.title)
            return
        self._opened.add(section.title)
        if not box.default_slot.children:
            self._fill_section(box, section)

    def _fill_section(self, box: ui.expansion, section: form.Section) -> None:
        with box:
            if section.meaning:
                ui.label(section.meaning.split("\n\n")[0].replace("``", "")).classes("text-caption")
            for one in section.fields:
                self._draw_field(one)
            first = section.fields[0].path if section.fields else ()
            if len(first) == 3 and first[0] == "strategy":
                ui.button(
                    "Remove it",
                    icon="delete",
                    on_click=lambda path=first[:2]: self._change(form.without_table, path),
                ).props("flat dense no-caps")

    def _draw_field(self, one: form.Field) -> None:
        def take(value: object) -> None:
            entered = "" if value is None else str(value)
            if entered != one.value:
                self._change(form.with_value, one.path, entered, one.kind)

        if one.kind in ("choice", "flag"):
            options = one.options or ("true", "false")
            box: Any = ui.select(
                list(options),
                value=one.value if one.value in options else None,
                label=one.name,
                clearable=True,
                on_change=lambda e: take(e.value),
            )
        else:
            box = ui.input(one.name, value=one.value)
            kind = _SUGGESTED.get(one.name)
            if kind in KINDS and one.path[0] != "strategy":
                box.props(f"list=names-{kind}")
            # At the end of the entry: a change draws the form anew.
            box.on("change", lambda: take(box.value))
        box.classes("w-full").props("dense stack-label")
        if one.default:
            box.props["placeholder"] = f"default {one.default}"
        with box:
            words = f"{one.expected[:1].upper()}{one.expected[1:]}."
            ui.tooltip(f"{words} {one.meaning}".replace("``", "")).classes("max-w-md text-body2")

    def _change(self, how: Callable[..., str], *arguments: Any) -> None:
        try:
            text = how(self._text, *arguments)
        except SimclusterError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self._set_text(text)

    async def _write(self) -> None:
        try:
            self._set_text(await self._jobs.written(facts.words(self._facts)))
        except SimclusterError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        ui.notify("Written: see All keys and File.", type="positive")

    def _download(self) -> None:
        ui.download.content(self._text, "scenario.toml")

    async def _take_scenario(self, given: events.UploadEventArguments) -> None:
        _emptied(given)
        try:
            self._set_text((await given.file.read()).decode("utf-8-sig"))
        except UnicodeDecodeError:
            ui.notify(f"{given.file.name}: is not text.", type="negative")

    async def _take_trace(self, given: events.UploadEventArguments) -> None:
        _emptied(given)
        place = self._jobs.folder / "traces"
        place.mkdir(parents=True, exist_ok=True)
        file = place / Path(given.file.name).name
        await given.file.save(file)
        try:
            text = self._text
            for key in ("num_requests", "duration_s", "lengths", "arrivals"):
                text = form.with_value(text, ("workload", key), "", "text")
            path = str(file.absolute())
            self._set_text(form.with_value(text, ("workload", "trace"), path, "text"))
        except SimclusterError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        ui.notify(f"workload.trace = {file.name}", type="positive")

    # The answers

    async def _answer(self) -> None:
        command = str(self._question.value)
        options = facts.words({name.lstrip("-"): text for name, text in self._options.items()})
        text: str | None = self._text
        if command == "plan":
            options, text = facts.words(self._facts), None
        try:
            await self._jobs.run(command, options, text, self._show)
        except OSError as error:
            ui.notify(f"{error.filename}: cannot be written ({error.strerror}).", type="negative")

    def _interrupt(self) -> None:
        if self._shown is not None:
            self._jobs.stop(self._shown)

    def _show(self, job: Job) -> None:
        self._shown = job
        self._seen: tuple[object, ...] = ()
        self._listed = ((0, ""),)
        self._refresh_states()

    def _refresh_states(self) -> None:
        """Draw what has changed since the last time."""
        listed = tuple((job.number, job.state) for job in self._jobs.all.values())
        if listed != self._listed:
            self._listed = listed
            self._draw_list()
        job = self._shown
        self._stop.set_enabled(job is not None and job.state == "running")
        self._bar.visible = job is not None and job.state == "running"
        if job is None:
            return
        if job.state == "running":
            self._bar.value = (job.percent or 0) / 100
            left = f", {job.left} left" if job.left else ""
            self._words.text = f"{job.call}{left}"
        seen = (job.number, job.state, len(job.said), job.report is not None)
        if seen != self._seen:
            self._seen = seen
            self._draw_job(job)

    def _draw_list(self) -> None:
        self._list.clear()
        with self._list:
            for job in sorted(self._jobs.all.values(), key=lambda one: -one.number)[:12]:
                icon, colour = _STATES[job.state]
                style = "unelevated" if job is self._shown else "outline"
                ui.button(job.title, icon=icon, on_click=lambda job=job: self._show(job)).props(
                    f"{style} dense no-caps color={colour}"
                )
        others = {
            job.number: job.title
            for job in self._jobs.all.values()
            if job is not self._shown and job.state in ("done", "not settled")
        }
        self._compared.set_options(
            others, value=self._compared.value if self._compared.value in others else None
        )

    def _draw_job(self, job: Job) -> None:
        self._said.clear()
        with self._said:
            for line in job.said:
                wrong = line.startswith("error")
                ui.label(line).classes("text-negative" if wrong else "text-warning-9")
        self._body.clear()
        if job.state != "running":
            took = f" ({job.seconds:.0f} s)" if job.seconds else ""
            call = job.call if job.words else job.title
            self._words.text = f"{call}: {job.state}{took}"
        with self._body:
            if job.scenario:
                ui.button(
                    "Take its scenario",
                    icon="undo",
                    on_click=lambda: self._set_text(job.scenario),
                ).props("flat dense no-caps")
            if job.report is not None:
                with ui.row():
                    ui.link("Open the report alone", f"/report/{job.number}", new_tab=True)
                    ui.link("Download it", f"/report/{job.number}?download=1")
                ui.element("iframe").props(
                    f'src="/report/{job.number}" title="Report of {job.title}" '
                    'sandbox="allow-scripts allow-downloads allow-popups"'
                ).classes("w-full h-[75vh] border")
            if job.output:
                with ui.expansion("As at a terminal").classes("w-full"):
                    _plain(job.output)

    async def _difference(self) -> None:
        other = self._jobs.all.get(int(self._compared.value or 0))
        if other is None or self._shown is None:
            ui.notify("Choose two answers: one is shown, the other stands in the list.")
            return
        text = await self._jobs.difference(other, self._shown)
        with ui.dialog() as dialog, ui.card().classes("max-w-none"):
            ui.label(f"From {other.title} to {self._shown.title}").classes("text-h6")
            _plain(text)
            ui.button("Close", on_click=dialog.close)
        dialog.open()


def _emptied(given: events.UploadEventArguments) -> None:
    """Make room for the next file."""
    sender: Any = given.sender
    sender.reset()


def _plain(text: str) -> None:
    """Show text as it stands, in equal letters."""
    ui.label(text).classes("font-mono whitespace-pre text-xs overflow-auto w-full")


def _verdict(text: str, folder: Path) -> tuple[str, bool]:
    """Return what a scenario is, and True; or what is wrong with it, and False."""
    try:
        scenario = resolve(form.tables_of(text), folder=folder)
        refuse_unused(scenario)
    except SimclusterError as error:
        return str(error), False
    return re.sub(r"\n {5,}", " ", heading(scenario)), True  # the page folds lines by itself


def serve(folder: Path, text: str, *, host: str, port: int, opened: bool) -> None:
    """Serve the page until it is interrupted.

    Parameters
    ----------
    folder : Path
        Where scenarios, results and traces are kept.
    text : str
        The scenario that is there at first.
    host, port : str, int
        Where it listens.
    opened : bool
        Open it in a browser.
    """
    jobs = Jobs(folder)

    def report(number: int, download: bool = False) -> Response:
        job = jobs.all.get(number)
        file = None if job is None else job.report
        if job is None or file is None:
            return PlainTextResponse("There is no such report.", status_code=404)
        name = f"{job.number}-{job.command}.html"
        headers = {"Content-Security-Policy": _SANDBOX, "Cache-Control": "no-store"}
        kind = "attachment" if download else "inline"
        return FileResponse(file, filename=name, headers=headers, content_disposition_type=kind)

    app.add_api_route("/report/{number}", report)
    ui.page("/", title="simcluster")(lambda: Page(jobs, text))
    app.on_shutdown(jobs.stop_all)
    ui.run(
        host=host,
        port=port,
        show=opened,
        reload=False,
        title="simcluster",
        show_welcome_message=False,
    )
