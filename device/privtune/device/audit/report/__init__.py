"""What an audit tells its owner: figures that were measured already, as words, JSON, pictures and a page.

`verdict` says in plain words what they mean, `document` puts them together and writes files for the owner's eyes only,
`page` is the HTML of an audit in the `frame` that all pages share, `picture` draws a frontier as SVG. Nothing here runs
an attack.
"""
