"""What was measured, and what it ought to be."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

Figures = dict[str, float | str | None]
"""By name, with the unit in it. What could not be measured is None."""

ALWAYS = (
    *(
        f"{way}_{program}_p50_ms"
        for program in ("true", "python")
        for way in ("bare_run", "bare_erofs", "warm", "cold", "arq", "gvisor")
    ),
    *(f"{way}_jobs_per_s" for way in ("bare_dir", "bare_erofs", "cold", "pool", "arq", "gvisor")),
    "bare_dir_cpu_ms_per_job",
    "bare_erofs_cpu_ms_per_job",
    "worker_cpu_ms_per_job",
    "worker_peak_mb_256",
)
"""Figures that are there whatever was measured, or went wrong."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A figure to reach, or a ratio of two."""

    what: str
    figure: str
    per: str | None = None
    most: float | None = None
    least: float | None = None

    def value(self, figures: Figures) -> float | None:
        """Return the figure or ratio; None if it was not measured."""
        figure, per = figures.get(self.figure), figures.get(self.per or "")
        if not isinstance(figure, int | float):
            return None
        if self.per is None:
            return figure
        return figure / per if isinstance(per, int | float) and per else None

    def verdict(self, value: float) -> str:
        """Return in words what was to be reached, and whether it is."""
        if self.most is not None:
            sign, bound, reached = "≤", self.most, value <= self.most
        else:
            assert self.least is not None
            sign, bound, reached = "≥", self.least, value >= self.least
        return f"{sign} {bound:g}  {'reached' if reached else 'MISSED'}"


TARGETS = (
    Target(
        what="warm latency ÷ bare runsc run, true",
        figure="warm_true_p50_ms",
        per="bare_run_true_p50_ms",
        most=0.12,
    ),
    Target(
        what="warm latency ÷ bare runsc run, python",
        figure="warm_python_p50_ms",
        per="bare_run_python_p50_ms",
        most=0.30,
    ),
    Target(
        what="cold throughput ÷ bare runsc run, directory",
        figure="cold_jobs_per_s",
        per="bare_dir_jobs_per_s",
        least=1.4,
    ),
    Target(
        what="cold throughput ÷ bare runsc run, EROFS",
        figure="cold_jobs_per_s",
        per="bare_erofs_jobs_per_s",
        least=0.95,
    ),
    Target(
        what="throughput, pool on ÷ off",
        figure="pool_jobs_per_s",
        per="cold_jobs_per_s",
        least=1.0,
    ),
    Target(what="worker's own cpu per job, ms", figure="worker_cpu_ms_per_job", most=4.0),
    Target(
        what="worker's peak memory, 256 jobs flood, MB", figure="worker_peak_mb_256", most=200.0
    ),
    Target(
        what="worker's peak memory, 256 jobs that flood end, MB",
        figure="worker_peak_mb_256_ending",
        most=250.0,
    ),
)


def table(figures: Figures) -> Iterator[str]:
    """Give lines for people: all figures, then those with a target."""
    for name, value in figures.items():
        shown = "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"
        yield f"{name:40} {shown:>10}"
    yield ""
    for target in TARGETS:
        value = target.value(figures)
        if value is not None:
            yield f"{target.what:44} {value:8.2f}   {target.verdict(value)}"
