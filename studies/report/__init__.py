"""What there is to see of a study: single plots, and all of it in one HTML file.

``data`` reads a study from the storage, and ``plot_kinds`` says which plots it can have. ``plotly_figures`` draws them
for a browser, ``matplotlib_images`` as PNG and SVG, and ``page`` makes the report. Nothing heavy is imported here.
"""
