"""Read run directories; draw their curves; write one offline page for a run or for several."""

from visgrpo.reporting.compare import compare_runs as compare_runs
from visgrpo.reporting.console import print_measures as print_measures
from visgrpo.reporting.figures import plot_curves as plot_curves
from visgrpo.reporting.groups import comparison_table as comparison_table
from visgrpo.reporting.groups import read_runs as read_runs
from visgrpo.reporting.page import ended as ended
from visgrpo.reporting.page import write_report as write_report
from visgrpo.reporting.run import Run as Run
from visgrpo.reporting.run import read_run as read_run
from visgrpo.reporting.run import series as series
