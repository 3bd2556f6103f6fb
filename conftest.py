"""Set what all tests share."""

from hypothesis import HealthCheck, settings

# By default hypothesis fails a test whose examples take long to draw, or one of which takes 200 ms; that depends on the
# machine. All else stays as it is: where CI is set, the examples are the same each time.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
