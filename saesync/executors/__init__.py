"""Steps: fetch, convert, validate, publish. One module each."""
