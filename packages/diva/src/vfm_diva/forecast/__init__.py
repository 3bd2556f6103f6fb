"""Predictions of the gain of feedback before tuning (`diva.predict`), and the law behind them (`diva.law`)."""
