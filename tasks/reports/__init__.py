"""Present a campaign to people: leaderboard, report, notes, terminal views."""
