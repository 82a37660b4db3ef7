"""What a run was worth, said honestly: `report.json`, `report.md`, `loss.png`, `routing.png`.

The code is organised as follows:

* `systems`: document scores to table rows, standard errors, paired comparisons and routing regret. Plain Python;
* `build`: the whole report as one dictionary that JSON can hold, and the files it becomes;
* `markdown`: that dictionary as a page for people;
* `plots`: the two pictures; matplotlib is imported when one is drawn, not before.
"""

from tinylora.report.build import build_report, peak_memory_mb, versions, write_report
from tinylora.report.markdown import to_markdown
from tinylora.report.plots import plot_loss, plot_routing

__all__ = [
    "build_report",
    "peak_memory_mb",
    "plot_loss",
    "plot_routing",
    "to_markdown",
    "versions",
    "write_report",
]
