"""What each figure is called and how to read it: a caption for a reader who has never seen such a plot."""

CAPTIONS = {
    "roc": (
        "ROC",
        "Left is strict, right is lax. A survey works at the dashed lines: 1 % false positives and, where there are "
        "haystacks enough to tell, 0.1 %. Switch to linear for the usual picture.",
    ),
    "precision-recall": (
        "Precision against recall",
        "How many of the flagged cadences are needles, as more are flagged. It depends on how rare "
        "needles are: here as rare as in the training set.",
    ),
    "folds": (
        "Each fold",
        "Dots with 95 % intervals; the band is the interval of all folds pooled. A fold well outside it "
        "is worth a look: a bad start, or harder data.",
    ),
    "snr": (
        "Recall against S/N",
        "Share of needles flagged at 1 % false positives, by S/N in one panel. The thick line is all "
        "kinds with its 95 % interval. Kinds with few needles are off at first: tap the legend.",
    ),
    "needles": (
        "Recall per kind of needle",
        "At 1 % false positives, with 95 % intervals. Short bars are the signals this model would miss.",
    ),
    "interference": (
        "False positives per kind of haystack",
        "Share flagged at the same threshold, 1 % over all. A long bar is the interference that looks "
        "like a needle to this model.",
    ),
    "distribution": (
        "Distribution of scores",
        "Out-of-fold scores of both classes, and of the test set (dotted). A test set shaped unlike the "
        "two together has other data in it.",
    ),
    "calibration": (
        "Calibration",
        "On the diagonal, a score of 0.3 comes true three times in ten. Larger dots hold more cadences. "
        "Off it, rank by the score but do not read it as a probability.",
    ),
    "auc": (
        "AUC per epoch",
        "Solid: held-out rows, without TTA. Dotted: training rows, augmented. A gap that widens is "
        "overfitting.",
    ),
    "loss": (
        "Loss per epoch",
        "Solid: held-out rows. Dotted: training rows.",
    ),
    "learning-rate": (
        "Learning rate",
        "The schedule that was used: ramp, sustain, decay.",
    ),
    "timeline": (
        "Folds over time",
        "A lane per fold. Hover for node and seconds; red is an attempt that failed and was tried again. Spans of "
        "the test set that were predicted at the same time lie above each other.",
    ),
    "classes": (
        "Classes",
        "Training cadences of each class.",
    ),
    "balance": (
        "Balance of the folds",
        "Held-out cadences of each class per fold. Folds with unlike shares of needles make their scores "
        "harder to compare.",
    ),
    "compared-auc": (
        "Pooled AUC",
        "With the 95 % interval of each run alone; the table's paired intervals are narrower.",
    ),
    "compared-snr": (
        "Recall against S/N",
        "Share of needles flagged at each run's own 1 % false positives, by S/N in one panel.",
    ),
    "compared-roc": (
        "ROC, all folds",
        "Which run is best at the strictness that you need?",
    ),
}
