"""What the claims share: cells run side by side, paired statistics, problems, paired training, and the page of results."""
