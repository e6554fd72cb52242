"""The dashboard: pages for people, made by the server, on top of the REST routes and nothing else.

Every page and every button asks REST inside this process, with the API key that its user logged in with. So what a key
may see and do, its limits, checks and messages are REST's; here is no second set of them. See docs/dashboard.md.
"""
