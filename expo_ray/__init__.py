"""expo_ray: extrapolate aligned language models on Ray and choose alpha by evidence."""
