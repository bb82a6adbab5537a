"""Compose, search, train and edit language encoders."""
