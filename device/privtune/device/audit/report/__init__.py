"""What an audit shows its owner: measured figures as words, JSON, pictures and a page.

`verdict` says in plain words what they mean, `document` puts them together and writes files that only the owner can
read, `page` renders the audit with the templates that all pages share (`frame`, templates/), `picture` draws a frontier
as SVG. Nothing here runs an attack.
"""
