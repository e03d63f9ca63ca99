"""What an OpenEnv host starts."""
