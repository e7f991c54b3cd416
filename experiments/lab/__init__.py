"""What the claims share: cells run side by side, paired statistics, problems, paired training, the page of results."""
