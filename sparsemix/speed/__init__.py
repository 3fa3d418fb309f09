"""How long a search step takes, against the published formulation and against plain networks, as ratios."""
