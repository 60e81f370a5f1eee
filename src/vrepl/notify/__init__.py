"""Ways to tell people and other programs how runs went. Each is bounded in time, and one that fails is a warning."""
