"""What has to do with the servers of FATE Flow: providers, submitting and following jobs, fetching their outputs."""
