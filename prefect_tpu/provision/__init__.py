"""Creates slices in a cloud and deletes them again: talks to cloud APIs, never to Ray or Prefect."""
