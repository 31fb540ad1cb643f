"""What a person reads of a campaign: leaderboard, report, notes, terminal views."""
