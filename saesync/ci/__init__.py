"""What saesync does in a repository's workflows: comment on pull requests, compare plans, check settings.

What is decided rests on the event that GitHub wrote and on GitHub's API. An artefact of a pull request's run is data to be
shown, never a word to be taken.
"""
