"""One model over several processes: which part of each weight a rank holds, and what ranks exchange."""
