"""What there is to see of a study: single plots, and all of it in one HTML file.

``data`` reads it from the storage and ``kinds`` says which plots a study can have; ``figures`` draws them for a
browser, ``images`` as PNG and SVG, and ``page`` makes the report of them. Nothing heavy is imported here.
"""
