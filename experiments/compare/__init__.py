"""Many runs: jobs that can be killed and resumed, benchmarks, and their statistics."""
