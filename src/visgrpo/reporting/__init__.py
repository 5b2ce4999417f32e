"""Read run directories; draw their curves; write one offline page for a run or for several."""

from visgrpo.reporting.compare import compare_runs as compare_runs
from visgrpo.reporting.curves import plot_curves as plot_curves
from visgrpo.reporting.groups import comparison_table as comparison_table
from visgrpo.reporting.groups import read_runs as read_runs
from visgrpo.reporting.labels import describe_gain as describe_gain
from visgrpo.reporting.page import write_report as write_report
from visgrpo.reporting.run_reader import Run as Run
from visgrpo.reporting.run_reader import read_run as read_run
from visgrpo.reporting.run_reader import series as series
