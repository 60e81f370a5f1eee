"""What a run did, as data (`report.model`), and the views of it. Importing this loads nothing heavy."""
