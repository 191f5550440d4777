"""A command that is in the midst of its work: what the tests that kill or disturb predictions start."""

# Predicts one case, says so, and waits with the next one until it is killed.
PREDICT = """
import sys, time
from autoseg.cli import main
from autoseg.inference import Predictor

original = Predictor.predict_prepared

def predict(self, *arguments, **options):
    if predicted:
        print("ready", flush=True)
        time.sleep(600)
    predicted.append(1)
    return original(self, *arguments, **options)

predicted = []
Predictor.predict_prepared = predict
main(sys.argv[1:])
"""
