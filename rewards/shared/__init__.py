"""Shared by several critics: judging in both orders, and splitting text into words."""
