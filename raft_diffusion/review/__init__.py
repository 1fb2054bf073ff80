"""The page on which a person chooses: `desk` knows the round, `server` answers the browser, `page.*` is the page."""
