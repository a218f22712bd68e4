"""Pages without charts, for forked processes: a browser's engine takes two seconds to start in each."""

from sidebranch.inspect import chart, report

chart.Chart.svg = "<svg></svg>"
report.scripts = str
